"""`iterum-sidecar check`: looks at everything that `run` will need, and tells all of it at once.

`findings` is what an area tells; `variables`, `volume`, `broker` with `management`, `store` and `manager` are the areas, and
`command` joins them. An area writes into the `Findings` that it is given, and raises for nothing that it looks for. It stops
at the first look that nobody answers, so that the whole ends soon, whatever the network does.
"""
