"""The errors of the reader."""


class Refused(Exception):
    """The store is damaged, forged, of another format, or no key opens it."""


class Unknown(Refused):
    """A structure of a version that this reader does not know."""
