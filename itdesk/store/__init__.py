"""SQL only: one module a noun, one function a statement."""
