"""What clients saw, and the judge of it: one end per request, the bytes of an undisturbed run, figures that add up.

A client keeps an Outcome per request; `violations` compares a whole history with a reference run and with the metrics
of the servers before and after. It trusts neither side: every promise is read off what was logged."""
import collections
import dataclasses
import re

# How an exchange ended, as far as its client can tell.
COMPLETE = "complete"  # An answer with a finish reason for every choice, and the protocol's own end.
ERROR = "error"  # A status or an event that says what went wrong.
CUT = "cut"  # The connection broke: a client library raises.
LEFT = "left"  # The client itself went away.
ENDS = (COMPLETE, ERROR, CUT, LEFT)


@dataclasses.dataclass
class Outcome:
    """One request as its client saw it. Times are of time.monotonic()."""
    body: dict
    server: str = ""
    tenant: str = ""
    sent: float = 0.0
    first_byte: float | None = None
    ended_at: float | None = None
    status: int = 0
    headers: dict = dataclasses.field(default_factory=dict)
    ends: list = dataclasses.field(default_factory=list)  # Of ENDS, as they came; exactly one is right.
    deltas: list = dataclasses.field(default_factory=list)  # (time, choice, text)
    finished: list = dataclasses.field(default_factory=list)  # (choice, reason)
    after_finish: int = 0  # Deltas of a choice that had finished, and events behind the last one.
    usage: dict | None = None
    error: dict | None = None
    note: str = ""
    done: bool = False  # The stream has said [DONE].

    @property
    def end(self):
        return self.ends[0] if self.ends else None

    @property
    def code(self):
        return (self.error or {}).get("code")

    def texts(self):
        """What came of each choice, in the order in which it came."""
        texts = collections.defaultdict(str)
        for _, choice, text in self.deltas:
            texts[choice] += text
        return dict(texts)

    def stall(self):
        """The longest silence between two deltas."""
        times = [time for time, _, _ in self.deltas]
        return max((b - a for a, b in zip(times, times[1:])), default=0.0)


def unstreamed(body):
    """The same request, to be answered in one piece."""
    plain = {k: v for k, v in body.items() if k not in ("stream", "stream_options")}
    if "quicksilver" in plain:
        plain["quicksilver"] = {k: v for k, v in plain["quicksilver"].items() if k != "canvases"}
    return plain


def key_of(body):
    """Requests with equal keys have equal answers, streamed or not."""
    return repr(sorted((k, repr(v)) for k, v in unstreamed(body).items()))


@dataclasses.dataclass
class Answer:
    """What an undisturbed run says: the text and the finish reason of every choice."""
    texts: dict
    reasons: dict
    completion_tokens: int
    prompt_tokens: int


def answer_of(outcome):
    if outcome.end != COMPLETE or outcome.usage is None:
        raise AssertionError(f"an undisturbed request did not complete: {outcome}")
    return Answer(outcome.texts(), dict(outcome.finished), outcome.usage["completion_tokens"],
                  outcome.usage["prompt_tokens"])


def one_end(outcome):
    """P1: exactly one of a complete answer, an error, a broken connection."""
    if len(outcome.ends) != 1:
        yield f"ended {len(outcome.ends)} times: {outcome.ends}"
    if outcome.after_finish:
        yield f"{outcome.after_finish} events after the end"
    choices = [choice for choice, _ in outcome.finished]
    if len(set(choices)) != len(choices):
        yield f"a choice finished twice: {choices}"
    if outcome.end == COMPLETE:
        wanted = set(range(outcome.body.get("n", 1)))
        if outcome.status != 200 or set(choices) != wanted:
            yield f"a clean end with status {outcome.status} and finish reasons for {sorted(choices)} of {sorted(wanted)}"
        if outcome.error is not None:
            yield f"a clean end with an error: {outcome.error}"
    if outcome.end == ERROR and not outcome.code:
        yield f"an error that says nothing: {outcome.status} {outcome.note}"


def same_bytes(outcome, answer):
    """P2: the reference's text; of an answer that broke off, a beginning of it."""
    for choice, text in outcome.texts().items():
        wanted = answer.texts.get(choice, "")
        if outcome.end == COMPLETE and text != wanted:
            yield f"choice {choice}: {text!r} is not {wanted!r}"
        if outcome.end != COMPLETE and not wanted.startswith(text):
            yield f"choice {choice}: {text!r} is no beginning of {wanted!r}"
    if outcome.end != COMPLETE:
        return
    missing = {c for c, text in answer.texts.items() if text} - set(outcome.texts())
    if missing:
        yield f"choices without text: {sorted(missing)}"
    if dict(outcome.finished) != answer.reasons:
        yield f"finish reasons {dict(outcome.finished)} are not {answer.reasons}"
    if outcome.usage is not None:
        seen = outcome.usage["completion_tokens"], outcome.usage["prompt_tokens"]
        if seen != (answer.completion_tokens, answer.prompt_tokens):
            yield f"usage {seen} is not {(answer.completion_tokens, answer.prompt_tokens)}"


def foreign_canaries(outcomes, canaries):
    """P4: no tenant's canary (tenant -> string) in what another one got."""
    for number, outcome in enumerate(outcomes):
        seen = "".join(outcome.texts().values()) + repr(outcome.error) + repr(outcome.headers)
        for tenant, canary in canaries.items():
            if tenant != outcome.tenant and canary in seen:
                yield f"request {number} of {outcome.tenant!r} got the canary of {tenant!r}"


def violations(outcomes, reference=None, canaries=None):
    """Every broken promise of a history, one line each. `reference`: key_of(body) -> Answer."""
    found = []
    for number, outcome in enumerate(outcomes):
        problems = list(one_end(outcome))
        if reference is not None:
            problems += same_bytes(outcome, reference[key_of(outcome.body)])
        found += [f"request {number} ({outcome.end}, {outcome.status}, {outcome.code}): {p}" for p in problems]
    return found + list(foreign_canaries(outcomes, canaries or {}))


class Page:
    """One reading of a metrics page: (name, labels) -> value."""
    LINE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$", re.M)
    LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')

    def __init__(self, text):
        self.series = {}
        for name, labels, value in self.LINE.findall(text):
            self.series[(name, frozenset(self.LABEL.findall(labels)))] = float(value)

    def sum(self, name, **labels):
        wanted = set(labels.items())
        return sum(v for (n, have), v in self.series.items() if n == name and wanted <= have)


def wrong_counters(outcomes, before, after, exact=True):
    """The servers' sums against the clients' view. `before`, `after`: Pages of every coordinator that served. Of answers
    that broke off a client knows only a part, so that tokens are a lower bound then; so it is unless `exact`."""
    def grown(name, **labels):
        return sum(p.sum(name, **labels) for p in after) - sum(p.sum(name, **labels) for p in before)

    statuses = collections.Counter(str(o.status) for o in outcomes if o.end in (COMPLETE, ERROR) and o.status != 200)
    for status, count in statuses.items():
        if grown("quicksilver_requests_total", code=status) != count:
            yield f"requests_total of {status}: {grown('quicksilver_requests_total', code=status)}, clients saw {count}"
    complete = [o for o in outcomes if o.end == COMPLETE]
    reasons = collections.Counter(min(o.finished)[1] for o in complete)
    total = sum(grown("quicksilver_requests_total", code="200", finish_reason=r) for r in ("stop", "length"))
    if total != sum(reasons.values()) and exact:
        yield f"requests_total of 200: {total}, clients saw {dict(reasons)}"
    for name, field in (("quicksilver_generation_tokens_total", "completion_tokens"),
                        ("quicksilver_prompt_tokens_total", "prompt_tokens")):
        told = sum(o.usage[field] for o in complete if o.usage)
        counted = grown(name)
        if counted < told or (exact and len(complete) == len(outcomes) and counted != told):
            yield f"{name}: {counted}, clients saw {told}"


IDLE_ZERO = ("quicksilver_num_requests_running", "quicksilver_num_requests_waiting", "quicksilver_stream_buffered_bytes",
             "quicksilver_kv_cache_usage_ratio")


def not_idle(pages):
    """Gauges that did not come back to rest."""
    for page in pages:
        for name in IDLE_ZERO:
            if page.sum(name) != 0:
                yield f"{name} is {page.sum(name)}"
