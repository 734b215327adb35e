"""Jobs: many requests in, an answer to each of them out.

`iterate` is a batch from Python and `job` the command over files; both are the `engine`, which asks (`asking`) as many
at a time as `pace` finds, and lets wait in the `backlog` what failed. A `request` is what is asked, several may be one
(`join`), a `result` is what became of it. `source` reads IN by its `lines`, `answers` are the lines of OUT, `journal`
writes them and goes on where a run stopped. `totals` are counted, and shown by `progress`.
"""

from .iterate import run
from .result import Result

__all__ = ["Result", "run"]
