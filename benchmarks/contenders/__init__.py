"""The same work, to copy every file of a folder, as the users of each program would have it done. See ../README.md."""
