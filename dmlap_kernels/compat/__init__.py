"""Drop-in forms of the losses for other libraries, each of which must be installed to use it."""
