"""When a model has learnt enough, and what to do with a draw of weights that never does; needs no torch."""

from typing import Any, Callable, Optional

SEEDS = 5
EVERY = 20                # steps between two checks: one takes as long as several steps


def learnt(step: Callable[[], float], passes: Callable[[], bool], steps: int, hopeful: float) -> bool:
    """Take steps until the check passes, at most so many, and tell whether it did.

    A step gives its loss. The loss alone never ends the lesson: below `hopeful` it only says that the check is worth
    its time. After the last step the check is made whatever the loss.
    """
    due = 0
    for number in range(1, steps + 1):
        loss = step()
        last = number == steps
        if number % 50 == 1 or last:
            print("step %d loss %.5f" % (number, loss), flush=True)
        if last or (loss < hopeful and number >= due):
            if passes():
                print("passed its check after step %d, loss %.5f" % (number, loss), flush=True)
                return True
            due = number + EVERY
    return False


def first_that_passes(attempt: Callable[[int], Optional[Any]], first_seed: int) -> Optional[Any]:
    """Give the model of the first seed whose attempt gives one; None if five seeds gave none."""
    for seed in range(first_seed, first_seed + SEEDS):
        model = attempt(seed)
        if model is not None:
            return model
        print("seed %d: the model does not pass its check" % seed, flush=True)
    print("no model passed its check: %d seeds were tried, from %d" % (SEEDS, first_seed), flush=True)
    return None
