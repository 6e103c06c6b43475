"""Object stores: the port, an S3 client on Trio, and a directory that stands in for one.

Nothing is imported here, so that whoever needs one store does not pay for the other.
"""
