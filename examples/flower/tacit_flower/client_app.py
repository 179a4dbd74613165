"""An owner: its node's configuration names its role and its folder of keys."""

from flwr.app import Context

from tacit.audit.figures import one_thread
from tacit.core.errors import ConfigError
from tacit.parties.credentials import load, state_key
from tacit.parties.links.flower import Party, Safe, client_app
from tacit.parties.star import Member
from tacit_flower.common import Plan, folder


def enrolled(context: Context) -> tuple[Party, Safe]:
    """Who this node is, and where its member's state lies."""
    keys = folder(context.node_config, "keys", "this owner's folder of keys")
    credentials, role = load(keys), context.node_config.get("role")
    if role != str(credentials.role):
        raise ConfigError(
            f"this node is to be {role!r}, but {keys} holds {credentials.role}'s keys"
        )
    state = context.node_config.get("state")
    safe = Safe(
        key=state_key(credentials, "flower"),
        folder=keys,
        state=folder(context.node_config, "state", "a folder for the state") if state else None,
    )
    return Plan.of(context.run_config).party(credentials), safe


def make_member(context: Context) -> Member:
    """The member as it is before its first message."""
    plan, credentials = Plan.of(context.run_config), load(folder(context.node_config, "keys", ""))
    task = plan.task().only(credentials.role)
    return plan.protection.members_of(task, plan.seat(credentials))[credentials.role]


app = client_app(make_member, enrolled, around=one_thread)
