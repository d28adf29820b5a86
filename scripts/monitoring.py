"""Checks deploy/monitoring against the code and the documents; scripts/monitoring.sh runs it.

Each metric, label and value of a label that an alert or a panel names must be exported by the code. Each alert has a
severity, texts, a heading to read, a place in docs/metrics.md, and a test in which it fires and one in which it does
not. Each metric of the code is in docs/metrics.md. Prints the dashboard's queries as recording rules, for promtool.
"""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy/monitoring"
# Prometheus adds these itself.
OF_TARGETS = {"job", "instance"}
OF_PROMETHEUS = {"up": set(), "ALERTS": {"alertname", "alertstate", "severity"}}


def exported():
    """The labels of each series that the code exports, and every text in the code."""
    series, texts = {}, set()
    for path in ROOT.glob("*/src/**/*.rs"):
        code = path.read_text()
        texts.update(re.findall(r'"([\w.-]+)"', code))
        names = dict(re.findall(r'const (\w+): &str =\s*"(stage0_\w+)"', code))
        kinds = {names[name]: kind for kind, name in re.findall(r"describe_(\w+)!\(\s*(\w+)", code) if name in names}
        labels = {name: set() for name in kinds}
        for name, rest in re.findall(r"\b(?:counter|gauge|histogram)!\(\s*(\w+)((?:[^()]|\([^()]*\))*)\)", code):
            if name in names:
                labels.setdefault(names[name], set()).update(re.findall(r'"(\w+)" =>', rest))
        current = set()
        for line in code.splitlines() if path.name == "process_metrics.rs" else []:
            if "let labels" in line:
                current = set(re.findall(r"(\w+)=\{", line))
            for name, given in re.findall(r'add\("\w+", "(\w+)", (&?)', line):
                labels[name] = current if given else set()
        for name, found in labels.items():
            for suffix in ("_bucket", "_sum", "_count") if kinds.get(name) == "histogram" else ("",):
                more = {"le"} if suffix == "_bucket" else set()
                series.setdefault(name + suffix, set()).update(found | more)
    return series, texts


SERIES, TEXTS = exported()


def faults(expr, shown=""):
    """What this expression, and the labels shown with its result, name and nothing exports."""
    found, known = [], set(OF_TARGETS)
    for name, matchers in re.findall(r"\b((?:stage0|process)_\w+|up|ALERTS)\b(?:\s*\{([^}]*)\})?", expr):
        labels = SERIES.get(name, OF_PROMETHEUS.get(name))
        if labels is None:
            found.append(f"no code exports `{name}`")
            continue
        known |= labels
        for label, operator, value in re.findall(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"', matchers):
            if label not in labels | OF_TARGETS:
                found.append(f"`{name}` has no label `{label}`")
            # A pattern such as `5..` or `.*/check` names no value.
            for word in re.findall(r"(?:^|\|)([A-Za-z][\w.-]*)(?=\||$)", value):
                if name in SERIES and word not in TEXTS:
                    found.append(f'no code says "{word}", the `{label}` of `{name}`')
    grouped = ",".join(re.findall(r"\b(?:by|on|without|ignoring|group_left|group_right)\s*\(([^)]*)\)", expr))
    for label in re.findall(r"\w+", grouped) + re.findall(r"\{\{\s*(?:\$labels\.)?(\w+)\s*\}\}", shown):
        if label not in known:
            found.append(f"no metric of `{' '.join(expr.split())}` has the label `{label}`")
    return found


def headings(path):
    lines = [line.lstrip("#").strip().lower() for line in path.read_text().splitlines() if line.startswith("#")]
    return {re.sub(r"[^\w-]", "", line.replace(" ", "-")) for line in lines}


def alerts():
    document = (ROOT / "docs/metrics.md").read_text()
    tests = re.split(r'\n  - name: "', (DEPLOY / "stage0-alerts-test.yml").read_text())[1:]
    for rule in re.split(r"\n      - alert: ", (DEPLOY / "stage0-alerts.yml").read_text())[1:]:
        name = rule.split("\n")[0]
        expr = re.search(r"expr: (.*?)\n        (?:for|labels):", rule, re.S)[1]
        yield from (f"{name}: {fault}" for fault in faults(expr.removeprefix("|"), rule))
        if not re.search(r"severity: (critical|warning)\}", rule) or "summary: " not in rule:
            yield f"{name}: no severity, or no summary"
        if "description: " not in rule:
            yield f"{name}: no description"
        page, _, heading = re.search(r"runbook: (.*)|$", rule)[1].partition("#") if "runbook: " in rule else ("", "", "")
        if not page or heading not in headings(ROOT / page):
            yield f"{name}: its runbook leads nowhere"
        if f"`{name}`" not in document:
            yield f"{name}: not in docs/metrics.md"
        test = next((test for test in tests if test.startswith(name + ":")), "")
        if "exp_samples: []" not in test or f'alertname="{name}"' not in test.partition("exp_samples:\n")[2]:
            yield f"{name}: no test in which it fires and one in which it does not"
    for name in SERIES:
        base = re.sub(r"_seconds_(bucket|sum|count)$|_together_(bucket|sum|count)$", "", name)
        if base not in document:
            yield f"`{name}` is not in docs/metrics.md"


def panels():
    dashboard = json.loads((DEPLOY / "stage0-dashboard.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"], target.get("legendFormat", "")
            if target["datasource"]["uid"] != "${datasource}":
                sys.exit(f"monitoring: {panel['title']}: its data source is not the variable")


# The check itself: these must be refused, and the last one accepted.
for bad in [
    "stage0_check_total",
    'stage0_checks_total{outcome="ALLOW"}',
    'stage0_checks_total{verdict="MAYBE_SO"}',
    "sum by (by) (stage0_checks_total)",
    'process_open_fds{role="gateway"}',
    'stage0_ready{commit="unknown"}',
]:
    assert faults(bad), bad
assert not faults('sum by (le, step) (rate(stage0_check_step_seconds_bucket{step!="body"}[5m]))', "{{step}}")

found = list(alerts())
print("groups:\n  - name: dashboard\n    rules:")
for number, (title, expr, legend) in enumerate(panels()):
    found += [f"panel {title}: {fault}" for fault in faults(expr, legend)]
    expr = expr.replace("$__rate_interval", "5m").replace("$job", ".+")
    print(f"      - {{record: 'stage0:panel{number}', expr: {json.dumps(expr)}}}")
for fault in found:
    print(f"monitoring: {fault}", file=sys.stderr)
sys.exit(1 if found else 0)
