"""A reward that differs between the responses of an untrained model, so that every epoch learns."""


def digit_share(question: str, answer: str, response: str) -> float:
    """Share of the response's characters that are digits."""
    return sum(c.isdigit() for c in response) / max(len(response), 1)
