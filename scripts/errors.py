"""The errors of this bundle: what a caller can catch, and the one form their messages have."""


class SequenceError(ValueError):
    """An exam we cannot use: unreadable, incomplete, or outside the limits of the reader."""


class RunFailedError(RuntimeError):
    """A run that finished its work but could not use every item; the message lists which."""


def bad_value(item: object, field: str, found: object, allowed: str, way_out: str = "") -> str:
    """One line that names the item, the field, the value found, the values allowed and the way out.

    Args:
        item: what was being read, as the user knows it: a path in the list, an id, a file.
        field: which part of it.
        found: the value that is there; long ones are cut to 200 characters.
        allowed: what would have been accepted.
        way_out: what to do about it, a full sentence.
    """
    text = str(found) or "empty"
    text = text if len(text) <= 200 else text[:197] + "..."
    return f"{item}: {field} is {text}, needs {allowed}." + (f" {way_out}" if way_out else "")
