"""What a run did, as one record: printed as JSON, as a table on a terminal, and as a Prefect artifact."""

from dataclasses import asdict, dataclass, field


@dataclass
class RunReport:
    """Counts of one run; all of them are of this run, not of the warehouse."""

    run: str
    warehouse: str
    events: int = 0
    events_known: int = 0
    rejected: int = 0
    items: int = 0
    users: int = 0
    partitions: int = 0
    # Groups by kind that this run formed.
    groups: dict[str, int] = field(default_factory=dict)
    calls: int = 0
    calls_by_kind: dict[str, int] = field(default_factory=dict)
    # Beside the calls, second attempts at an answer that was no use, and how many of these were.
    retries: int = 0
    retries_mended: int = 0
    # Planned, but not within the budget.
    calls_waiting: int = 0
    # Not among the calls: these stay pending until the engine's context has room for them.
    prompts_too_long: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    tokens_per_s: float = 0.0
    # Of speculative decoding: mode, pool, tokens per step, counts of draft tokens, what drafting costs and gains.
    speculation: dict[str, object] = field(default_factory=dict)
    texts_by_status: dict[str, int] = field(default_factory=dict)
    texts_encoded: int = 0
    texts_per_s: float = 0.0
    adapter: str | None = None
    adapter_kind: str | None = None
    adapter_measures: dict[str, float] = field(default_factory=dict)
    # Of a new adapter, by tower: how evenly its gate uses the experts, and how much each.
    adapter_gates: dict[str, dict[str, object]] = field(default_factory=dict)
    # And by side, which share of what others' choices say of an entity its texts foretell, on average over factors.
    adapter_foretold: dict[str, float] = field(default_factory=dict)
    rows_published: int = 0
    rows_by_table: dict[str, int] = field(default_factory=dict)
    snapshot: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, object]:
        return asdict(self)

    def as_markdown(self) -> str:
        """A table of everything counted, for the `run-report` artifact."""
        lines = ["| what | figure |", "|---|---|"]
        for name, value in self.as_dict().items():
            if isinstance(value, dict):
                value = ", ".join(f"{key} {count}" for key, count in value.items()) or "none"
            elif isinstance(value, list):
                value = "; ".join(value) or "none"
            lines.append(f"| {name.replace('_', ' ')} | {value} |")
        return "\n".join(lines)
