"""`iterum-sidecar new`: a small pipeline that works, to begin with."""
