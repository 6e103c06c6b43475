"""The broker's port, and its two implementations: AMQP, and in memory."""
