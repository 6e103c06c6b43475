"""The rooms that a fragment walks through, a file each; none knows another.

Each has one entry coroutine, `run`, that is given its ends of the channels and the ports that it uses, and returns
when its work is over. `sidecar.py` is where they are joined. A stage closes its sending ends, which is how the next
learns that nothing more comes. It never closes a receiving end: a neighbour that is cancelled in the same moment would
meet a broken channel.
"""
