"""`iterum-sidecar dead-letters`: looks at a step's dead letters, puts them back, or throws them away.

`arguments` is the command line, `place` which queue of which broker is meant, and `connecting` the way there. `reading` goes once
through everything in the queue; `letter` is what each message says of itself, and `choosing` which of them are meant. `listing`,
`showing`, `putting_back` and `discarding` are what is done with those; each tells at its end what it has done, also half-way.
`command` joins them.

Nothing here takes a message out of its queue but for an acknowledgement: after the broker's confirm of its second place, or at
the user's word. Whatever is not acknowledged goes back by itself, however the program ends.
"""
