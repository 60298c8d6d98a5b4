"""One check that several settings of the harness share."""


def check_count(name: str, value: int, least: int, advice: str = "") -> None:
    """Refuse what does not count anything: nan compares false with every bound.

    Args:
        name: What the setting is called.
        value: Came in, of any type.
        least: Smallest number that is allowed.
        advice: What to do instead, as a sentence.

    Raises:
        ValueError: the value is no whole number, or too small.

    Example:
        >>> check_count("accumulate", 0, least=1, advice="Use 1 to step each batch.")
        Traceback (most recent call last):
        ValueError: accumulate must be >= 1: got 0. Use 1 to step each batch.
    """
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if not is_whole or value < least:
        rule = f">= {least}" if is_whole else "a whole number"
        raise ValueError(f"{name} must be {rule}: got {value}. {advice}".rstrip())
