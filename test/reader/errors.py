"""The errors of the reader."""


class Refused(Exception):
    """The store is damaged, forged, of another format, or no key opens it."""
