"""A warning before a training in a type that this machine is slow in, though the recipe asks for it."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from edgeft.pipeline import State
from edgeft.plan import TRAINS
from edgeft.preflight import estimate
from edgeft.preflight.machine import Speed, speed_of_this_machine
from edgeft.recipe import Recipe
from edgeft.torch_dtype import SECTIONS, of_this_machine, torch_dtype_of

if TYPE_CHECKING:
    from edgeft.console import Log
    from edgeft.machine.compute_type import ComputeType

SLOW, FAST = "bfloat16", "float32"


def warn_of_slow_type(
    recipe: Recipe,
    inspected: Callable[[], list[State]],
    log: "Log",
    chosen: "ComputeType | None" = None,
    speed: Speed | None = None,
) -> None:
    """Say one line when `recipe` names bfloat16 for what is to be trained and float32 would be faster here, with the
    minutes of both. `inspected` gives the plan, asked only then; `chosen` and `speed` are this machine's unless given.
    """
    slow = [section for section in SECTIONS if torch_dtype_of(recipe, section) == SLOW]
    if not slow:
        return
    chosen = chosen or of_this_machine(log)
    states = inspected() if chosen.dtype != SLOW else []
    stages = [state.planned.stage for state in states if state.artifact is None]
    affected = [stage for stage in stages if TRAINS.get(stage) in slow]
    if not affected:
        return
    keys = ", ".join(dict.fromkeys(f"{TRAINS[stage]}.torch_dtype" for stage in affected))
    faster = {section: getattr(recipe, section).model_copy(update={"torch_dtype": FAST}) for section in slow}
    speed = speed or speed_of_this_machine(log)
    costs = [estimate(each, states, speed) for each in (recipe, recipe.model_copy(update=faster))]
    minutes = [[cost[stage].minutes for stage in affected] for cost in costs]
    log.say(
        f"WARNING: {keys}: {SLOW} is slow here: {_minutes(minutes[0])} of training, in {FAST} "
        f"{_minutes(minutes[1])}. {chosen.reason[0].upper()}{chosen.reason[1:]}. Leave the key out, or set it to auto."
    )


def _minutes(stages: list[float | None]) -> str:
    known = [minutes for minutes in stages if minutes is not None]
    if len(known) < len(stages):
        return "a number of minutes not known yet"
    return f"about {sum(known):,.1f} minutes"
