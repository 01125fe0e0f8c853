"""The machines of the product, made by hand: `podman create` and `podman start` with what Catty's engine asks of Podman's API."""

from __future__ import annotations

from catty.engines.container.plan import ENDPOINT_OPTIONS, Plan
from catty.engines.container.podman import PodmanDialect

__all__ = ["create_words", "volume_words"]


def volume_words(plan: Plan) -> list[str]:
    """`podman volume create …` of the endpoint of `plan`, which has to be there before the container."""
    endpoint = next(volume for volume in plan.volumes if volume.tmpfs)
    options = ["--opt=type=tmpfs", "--opt=device=tmpfs", f"--opt=o={ENDPOINT_OPTIONS}"]
    return ["volume", "create", *options, endpoint.name]


def create_words(plan: Plan) -> list[str]:
    """`podman create …` of `plan`; the engine makes the other volumes along with the container."""
    _, body = PodmanDialect().container(plan)
    words = ["create", f"--name={plan.name}", f"--hostname={plan.hostname}", "--systemd=false"]
    words += [f"--env={name}={value}" for name, value in plan.env.items()]
    words += [f"--label={name}={value}" for name, value in plan.labels.items()]
    words += [f"--cap-add={name}" for name in plan.capabilities]
    words += [f"--volume={v['Name']}:{v['Dest']}:{','.join(v['Options'])}" for v in body["volumes"]]
    words += [f"--tmpfs={target}:{options}" for target, options in plan.tmpfs]
    words += [f"--volume={source}:{target}:ro,nosuid,nodev" for source, target in plan.binds]
    words += ["--log-driver=k8s-file", f"--log-opt=max-size={body['log_configuration']['size']}"]
    words += [f"--ulimit={limit['type']}={limit['soft']}:{limit['hard']}" for limit in body["r_limits"]]
    if plan.memory:
        words += [f"--memory={plan.memory}", f"--memory-swap={plan.memory}"]
    if plan.cpus:
        words.append(f"--cpus={plan.cpus}")
    if plan.pids:
        words.append(f"--pids-limit={plan.pids}")
    if plan.auto_userns:
        words.append(f"--userns=auto:{body['userns']['value']}")
    words += _network(body)
    return [*words, plan.image, *plan.command]


def _network(body: dict[str, object]) -> list[str]:
    servers = body.get("dns_server") or []
    options = body.get("network_options") or {}
    if not isinstance(options, dict) or not isinstance(servers, list) or not options:
        return ["--network=none"]
    ((helper, values),) = options.items()
    return [f"--network={helper}:{','.join(values)}", *(f"--dns={server}" for server in servers)]
