"""An actor in the place of any other one, for tests of what is gathered from actors."""

import time


class Sayer:
    """Says the same at every question, and sleeps when it is told to."""

    def __init__(self, says: object) -> None:
        self._says = says

    def take_figures(self) -> object:
        return self._says

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)
