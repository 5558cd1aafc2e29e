"""Errors a person can act on: one line that says what is wrong, where, and what would be right."""


class ConversionError(Exception):
    """Base of every error this package raises on purpose."""


class InputError(ConversionError):
    """An argument, file, row or setting from outside cannot be used (exit status 2)."""


class UnreachableError(InputError):
    """A service cannot be reached or broke off in between; the same call may succeed later."""


class NotFoundError(ConversionError):
    """A client or pattern that was asked for does not exist (exit status 6)."""


class ConflictError(ConversionError):
    """Another process holds what this one needs; nothing was changed."""


class SuspiciousReadError(ConversionError):
    """A source returned far fewer rows than before; nothing was overwritten."""


class ConversionWarning(UserWarning):
    """Something worth a look that does not stop the work."""
