"""What a user is told whose command line is wrong."""

from typing import Any

import typer

from ganbert.stop_signals import StoppableGroup


class Verbs(StoppableGroup):
    """The verbs of `ganbert`: they can be stopped, and a wrong option is told in our words."""

    def invoke(self, ctx: Any) -> Any:
        """Run the verb.

        Raises
        ------
        typer.BadParameter
            If one of its options is wrong; typer prints what it says and leaves with code 2.
        """
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            # Of pydantic, by which typer reads the options.
            error.message = error.message.removeprefix("Value error, ")
            raise
