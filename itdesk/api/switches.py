"""Plugins, for administrators: how they are, and switching them while the desk works."""

from pydantic import Field

from itdesk.api.route import Body, Call, Reply, Route, Who
from itdesk.desk.switchboard import PluginState


class Position(Body):
    """Where the switch of a plugin shall be."""

    enabled: bool = Field(
        description="False takes the plugin out; true brings it in, anew if broken."
    )


async def list_switches(call: Call) -> Reply:
    """List the plugins of the configuration, and how each is at the daemon that answers."""
    return Reply(await call.desk.switchboard.list(call.caller))


async def one_switch(call: Call) -> Reply:
    """Return how one plugin is at the daemon that answers."""
    return Reply(await call.desk.switchboard.look(call.caller, call.path["plugin"]))


async def turn(call: Call) -> Reply:
    """Switch a plugin for all daemons, and tell what came of it at the one that answers."""
    state = await call.desk.switchboard.turn(
        call.caller, call.path["plugin"], enabled=call.body.enabled
    )
    return Reply(state)


ROUTES: list[Route] = [
    Route(
        id="PL1",
        method="GET",
        path="/plugin-switches",
        handler=list_switches,
        who=Who.ADMIN,
        tag="operation",
        response=list[PluginState],
    ),
    Route(
        id="PL3",
        method="GET",
        path="/plugin-switches/{plugin}",
        handler=one_switch,
        who=Who.ADMIN,
        tag="operation",
        response=PluginState,
        errors={"E_PLUGIN_NOT_FOUND": 404},
    ),
    Route(
        id="PL2",
        method="PUT",
        path="/plugin-switches/{plugin}",
        handler=turn,
        who=Who.ADMIN,
        tag="operation",
        body=Position,
        response=PluginState,
        errors={"E_PLUGIN_NOT_FOUND": 404, "E_PLUGIN_SECTION": 409, "E_PLUGIN_NEEDED": 409},
    ),
]
