"""Which networks suit an environment: its observations choose the torso, its actions the heads."""

from starling.distributions import policy_heads
from starling.errors import check
from starling.networks.description import SMALLEST, Activation, Dueling, Linear, Lstm, Mlp, NatureCnn, Network, Torso
from starling.spec import Spec, measured


def torso_for(spec: Spec, hidden: tuple[int, ...], activation: Activation, normalise: bool = False) -> Torso:
    """Return the Nature CNN over frames, layers of these widths over anything else, `normalise` its inputs first."""
    frames = len(spec.obs.shape) == 3 and not spec.classes
    check(
        not normalise or (measured(spec) and not frames),
        f"algorithm.normalise_obs must be false for integers, bytes and frames, whose range is known; {spec.env} has "
        f"{spec.obs.dtype} of {spec.obs.shape}",
    )
    if not frames:
        return Mlp(hidden=hidden, activation=activation, normalise=normalise)
    check(
        min(spec.obs.shape[1:]) >= SMALLEST,
        f"frames must be [channels, height, width] with at least {SMALLEST} of each of the last two; {spec.env} has "
        f"{spec.obs.shape}: wrap it so that it transposes or enlarges them, or returns them flat",
    )
    return NatureCnn()


def q_network(algorithm: str, spec: Spec, torso: Torso, dueling: bool, bias: bool = True) -> Network:
    """Return a network with the one head `q`, or say that the algorithm needs other actions."""
    masked = f"env.action_mask must be none with algorithm {algorithm}, which knows no actions that are impossible"
    check(not spec.mask, f"{masked}; got info")
    actions = spec.num_actions
    kind = "several actions at once" if spec.choices else f"a box of {spec.action.shape}"
    check(actions > 0, f"algorithm {algorithm} needs discrete actions; {spec.env} has {kind}")
    return Network(
        torso=torso, heads={"q": Dueling(actions=actions) if dueling else Linear(outputs=actions, bias=bias)}
    )


def actor_critic(
    spec: Spec, torso: Torso, memory: Lstm | None, shared: bool, log_std: float = 0.0
) -> dict[str, Network]:
    """Return `policy` with the heads of a distribution, and its `value`: a head of the same, or a network beside it."""
    policy = policy_heads(spec, scale=0.01, log_std=log_std)
    value = {"value": Linear(outputs=1)}
    if shared:
        return {"policy": Network(torso=torso, heads={**policy, **value}, memory=memory)}
    return {
        "policy": Network(torso=torso, heads=policy, memory=memory),
        "value": Network(torso=torso, heads=value, memory=memory),
    }
