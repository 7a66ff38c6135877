"""The configuration file as people write it: a byte order mark, `~`, sections that are none, models without a name."""

from pathlib import Path

import pytest

from flows.config import load_config
from tests.flows.shop import open_shop
from warehouse.errors import ConfigError


def test_sections_that_do_not_go_together_are_named_without_the_whole_file(tmp_path: Path) -> None:
    text = "[inputs.behaviours]\npath = 'b'\n[inputs.items]\npath = 'i'\n[engine]\nmodel = 'm'\nmax_new_tokens = 9\n"
    (tmp_path / "l.toml").write_text(text + "[budget]\nmax_output_tokens = 8\n")
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "l.toml")
    assert "has budget.max_output_tokens = 8 is less than" in str(caught.value)
    (tmp_path / "l.toml").write_text(text + "[budget]\nscores = 's.csv'\n")
    with pytest.raises(ConfigError, match="without max_calls or max_output_tokens all come"):
        load_config(tmp_path / "l.toml")


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    config = open_shop(tmp_path)
    config.write_bytes(b"\xef\xbb\xbf" + config.read_bytes())
    assert load_config(config).partitions.sizes == (2, 3)


def test_the_home_folder_may_hold_the_warehouse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    config = open_shop(tmp_path)
    config.write_text(config.read_text().replace('warehouse = "warehouse"', 'warehouse = "~/lore"'))
    assert load_config(config).root == tmp_path / "home" / "lore"


def test_the_home_folder_of_nobody_is_refused(tmp_path: Path) -> None:
    config = open_shop(tmp_path)
    config.write_text(config.read_text().replace('warehouse = "warehouse"', 'warehouse = "~no-such-user/lore"'))
    with pytest.raises(ConfigError, match=r"`warehouse` = '~no-such-user/lore'.*full path"):
        load_config(config)


def test_a_key_cannot_be_laid_over_a_section_that_is_a_number(tmp_path: Path) -> None:
    config = tmp_path / "lorestream.toml"
    config.write_text("engine = 5\n")
    with pytest.raises(ConfigError, match=r"`engine` = 5 is no table, so `engine\.model` cannot be set"):
        load_config(config, {"engine.model": "x"})


def test_a_value_of_an_option_is_not_blamed_on_the_file(tmp_path: Path) -> None:
    config = open_shop(tmp_path)
    with pytest.raises(ConfigError, match=r"`adapter\.backbone` = 'Nope', which an option sets: Input should be"):
        load_config(config, {"adapter.backbone": "Nope"})


@pytest.mark.parametrize("model", ["", " "])
@pytest.mark.parametrize("key", ["engine.model", "encoder.model"])
def test_a_model_without_a_name_is_refused(tmp_path: Path, key: str, model: str) -> None:
    with pytest.raises(ConfigError, match=rf"`{key}` is empty"):
        load_config(open_shop(tmp_path), {key: model})


def test_settings_of_drafts_are_refused_with_a_served_model_and_an_empty_section_is_not(tmp_path: Path) -> None:
    served = "[inputs.behaviours]\npath = 'b'\n[inputs.items]\npath = 'i'\n[engine]\nbackend = 'openai'\n"
    served += "base_url = 'http://localhost:1/v1'\nmodel = 'm'\n[speculation]\n"
    config = tmp_path / "l.toml"
    config.write_text(served)
    assert load_config(config).speculation.mode == "lossless"
    config.write_text(served + "mode = 'off'\n")
    assert load_config(config).speculation.mode == "off"
    config.write_text(served + "mode = 'relaxed'\nk = 3\n")
    with pytest.raises(ConfigError, match=r"speculation\.k = 3, speculation\.mode = 'relaxed': no effect with engine"):
        load_config(config)
