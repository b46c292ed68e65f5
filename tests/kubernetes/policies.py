"""Two rules of Kubernetes, as its documentation states them, for tests to ask.

What the PodSecurity level `restricted` refuses (kubernetes.io/docs/concepts/security/
pod-security-standards), and what a Job does when a pod fails (kubernetes.io/docs/tasks/job/
pod-failure-policy).
"""

from collections.abc import Iterable, Iterator

from .manifests import Document, Pod

# Of a pod; everything else that reaches the host is a volume of it.
_HOST_NAMESPACES = ("hostNetwork", "hostPID", "hostIPC")
_VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim",
    "projected", "secret",
}  # fmt: skip


def violations(pod: Pod) -> set[str]:
    """Return what `restricted` would refuse in a pod, each as 'container: what'."""
    found = {f"pod: {name}" for name in _HOST_NAMESPACES if pod.spec.get(name)}
    for volume in pod.spec.get("volumes", []):
        found |= {f"pod: volume {kind}" for kind in volume.keys() - {"name"} - _VOLUMES}
    of_pod = pod.spec.get("securityContext", {})
    for container in pod.containers:
        own = of_pod | container.get("securityContext", {})
        found |= {f"{container['name']}: {what}" for what in _of_container(own, container)}
    return found


def _of_container(context: Document, container: Document) -> Iterator[str]:
    if context.get("privileged"):
        yield "privileged"
    if context.get("allowPrivilegeEscalation") is not False:
        yield "privilege escalation"
    if context.get("runAsNonRoot") is not True:
        yield "may be root"
    if context.get("runAsUser") == 0:
        yield "user 0"
    if context.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
        yield "no seccomp profile"
    capabilities = context.get("capabilities", {})
    if "ALL" not in capabilities.get("drop", []):
        yield "keeps capabilities"
    for name in set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}:
        yield f"adds {name}"
    if any(port.get("hostPort") for port in container.get("ports", [])):
        yield "port of the host"


def action(job: Document, exit_code: int, conditions: Iterable[str] = ()) -> str:
    """Return what the first fitting rule of a Job's podFailurePolicy says; Count if none fits."""
    for rule in job["podFailurePolicy"]["rules"]:
        codes = rule.get("onExitCodes")
        if codes is not None and exit_code != 0:
            assert codes["operator"] == "In"
            if exit_code in codes["values"]:
                return str(rule["action"])
        wanted = {one["type"] for one in rule.get("onPodConditions", [])}
        if wanted & set(conditions):
            return str(rule["action"])
    return "Count"
