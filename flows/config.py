"""The configuration file: one frozen model per room, checked as a whole before anything runs."""

import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from adapters.config import AdapterConfig
from augment.budget import BudgetConfig
from augment.encode import EncoderConfig
from augment.engine.config import EngineConfig, OpenAIConfig
from augment.generate import SegmentConfig
from augment.groups.config import GroupsConfig
from augment.quality.config import QualityConfig
from augment.repertoire import KnowledgeConfig
from augment.sealing import PartitionConfig
from augment.speculation.config import PoolConfig, SpeculationConfig
from prompts.render import PromptOptions
from warehouse.errors import ConfigError
from warehouse.fitness import ChecksConfig
from warehouse.objects import is_url
from warehouse.retention import SnapshotsConfig
from warehouse.sources import InputsConfig

CONFIG_NAME = "lorestream.toml"
_BACKENDS = ("vllm", "openai")


class LabelsConfig(BaseModel, frozen=True, extra="forbid"):
    """What counts as a positive event, for training the adapter and measuring lift."""

    positive: str = "value > 3"
    # Item attribute that the CTR model sees as a categorical field beside the item id (of a list, the first value).
    category: str | None = None
    # A longer log is cut to a stable sample of whole users: training is in memory.
    max_events: int = Field(1_000_000, ge=1)


class PromptsConfig(PromptOptions, frozen=True, extra="forbid"):
    """Which scenario's words and factors the prompts use (a shipped name or the path of a file), and how they show a
    history."""

    scenario: str = "movies"

    @property
    def options(self) -> PromptOptions:
        return PromptOptions.model_validate(self.model_dump(exclude={"scenario"}))


class Config(BaseModel, frozen=True, extra="forbid"):
    """All of `lorestream.toml`. Relative paths are relative to the folder of that file."""

    warehouse: Path = Path("warehouse")
    inputs: InputsConfig
    labels: LabelsConfig = LabelsConfig()
    partitions: PartitionConfig = PartitionConfig()
    prompts: PromptsConfig = PromptsConfig()
    knowledge: KnowledgeConfig = KnowledgeConfig()
    groups: GroupsConfig = GroupsConfig()
    budget: BudgetConfig = BudgetConfig()
    quality: QualityConfig = QualityConfig()
    engine: Annotated[EngineConfig | OpenAIConfig, Field(discriminator="backend")]
    speculation: SpeculationConfig = SpeculationConfig()
    pool: PoolConfig = PoolConfig()
    segments: SegmentConfig = SegmentConfig()
    encoder: EncoderConfig = EncoderConfig()
    adapter: AdapterConfig = AdapterConfig()
    checks: ChecksConfig = ChecksConfig()
    snapshots: SnapshotsConfig = SnapshotsConfig()
    # Where the warehouse lives, if not in that folder alone, which is then a working copy: the URL of any fsspec
    # filesystem but a local one.
    store: str | None = None
    # Folder of the file this was read from; not a setting.
    base: Path = Field(Path("."), exclude=True)

    @field_validator("store")
    @classmethod
    def _is_a_place_of_objects(cls, url: str | None) -> str | None:
        if url is not None and not is_url(url):
            raise ValueError('a store is a URL such as "s3://bucket/warehouse"; a folder is named as `warehouse`')
        return url

    @field_validator("warehouse")
    @classmethod
    def _expand_home(cls, folder: Path) -> Path:
        try:
            return folder.expanduser()
        except RuntimeError as error:
            raise ValueError(f"{error}. Give the folder's full path") from error

    @model_validator(mode="after")
    def _drafts_need_our_engine(self) -> Self:
        given = sorted(self.speculation.model_fields_set) if self.speculation.mode != "off" else []
        if given and isinstance(self.engine, OpenAIConfig):
            settings = ", ".join(f"speculation.{key} = {getattr(self.speculation, key)!r}" for key in given)
            raise ValueError(
                f'{settings}: no effect with engine.backend = "openai", where whether drafts are made is the '
                "server's business. Leave it out"
            )
        return self

    @model_validator(mode="after")
    def _a_call_fits_the_budget(self) -> Self:
        most = self.budget.max_output_tokens
        if most and most < self.engine.max_new_tokens:
            raise ValueError(
                f"budget.max_output_tokens = {most} is less than the engine.max_new_tokens = "
                f"{self.engine.max_new_tokens} that one answer may have, so no call would ever be made. Raise the "
                "first or lower the second; 0 makes none on purpose"
            )
        return self

    @property
    def scenario(self) -> str:
        """The scenario's name, or its path made absolute when a file of that name lies beside this one."""
        beside = self.base / self.prompts.scenario
        return str(beside) if beside.is_file() else self.prompts.scenario

    @property
    def budget_scores(self) -> Path | None:
        """The table of scores, relative to this file's folder unless absolute."""
        return None if self.budget.scores is None else self.base / self.budget.scores

    @property
    def root(self) -> Path:
        """The warehouse's folder."""
        return self.base / self.warehouse


def load_config(path: Path, overrides: Mapping[str, object] | None = None) -> Config:
    """The configuration in `path`, with dotted `overrides` (`{"engine.model": "..."}`) laid over it.

    Raises ConfigError naming every unknown key and bad value.
    """
    try:
        # Editors on Windows put a byte order mark first.
        raw: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise ConfigError(
            f"There is no config file {path}. Make one with `lorestream init DIR`, or name yours with --config."
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The config file {path} cannot be read: {error}.") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}. Mend that line.") from error
    for dotted, value in (overrides or {}).items():
        section, _, key = dotted.rpartition(".")
        table = raw.setdefault(section, {}) if section else raw
        if not isinstance(table, dict):
            raise ConfigError(
                f"{path}: `{section}` = {table!r} is no table, so `{dotted}` cannot be set. Make it a section "
                f"[{section}]."
            )
        table[key] = value
    if "base" in raw:
        raise ConfigError(f"{path}: unknown key `base` = {raw['base']!r}. Remove it.")
    base = path.resolve().parent
    engine = raw.get("engine")
    served = False
    if isinstance(engine, dict):
        engine.setdefault("backend", "vllm")
        served = engine["backend"] != "vllm"
    # A server's model is called as the server calls it; its tokenizer may lie beside the file.
    _resolve_model(path, "engine", engine, "tokenizer" if served else "model")
    _resolve_model(path, "encoder", raw.get("encoder"), "model")
    try:
        return Config.model_validate({**raw, "base": base})
    except ValidationError as error:
        raise ConfigError(f"{path} has {_faults(error, overrides or {})}") from error


def _resolve_model(path: Path, name: str, section: object, key: str) -> None:
    """Make the folder under `key` of `section` absolute when it lies beside the config file `path`; an id stays one."""
    if not isinstance(section, dict) or not isinstance(section.get(key), str):
        return
    if not section[key].strip():
        raise ConfigError(f"{path}: `{name}.{key}` is empty. Name the folder or the id of a model.")
    folder = path.resolve().parent / section[key]
    if folder.is_dir():
        section[key] = str(folder)


def _faults(error: ValidationError, overrides: Collection[str]) -> str:
    lines = []
    for fault in error.errors():
        # Of a section that comes in several forms, pydantic names the form as well; the file does not.
        place = [str(step) for i, step in enumerate(fault["loc"]) if i != 1 or step not in _BACKENDS]
        where = ".".join(place) or "(whole file)"
        if fault["type"] == "extra_forbidden":
            lines.append(f"unknown key `{where}` = {fault['input']!r}: remove it or correct its spelling")
        elif fault["type"] == "missing":
            lines.append(f"no `{where}`, which is required: add it")
        elif not place:
            # Of two sections that do not go together; both stand in the message.
            lines.append(fault["msg"].removeprefix("Value error, "))
        else:
            source = ", which an option sets" if where in overrides else ""
            lines.append(f"`{where}` = {fault['input']!r}{source}: {fault['msg'].removeprefix('Value error, ')}")
    return "; ".join(lines) + ". `lorestream init` writes a file with every key explained."
