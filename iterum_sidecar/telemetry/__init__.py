"""What the sidecar tells about itself."""
