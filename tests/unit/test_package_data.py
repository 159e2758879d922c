"""The package finds its own files, in a checkout and in an installed wheel."""

from __future__ import annotations

import re

import pytest

from hdlm import package_data


def test_package_data_of_checkout_is_at_repository_root(repository):
    assert package_data.configs() == repository / "configs"
    assert package_data.recipes() == repository / "recipes"


@pytest.mark.parametrize("folder", ["configs", "recipes", "pretrained"])
def test_package_data_of_wheel_is_in_package(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(package_data, "_PACKAGE", tmp_path)
    (tmp_path / folder).mkdir()
    assert getattr(package_data, folder)() == tmp_path / folder


def test_missing_package_data_names_the_path(tmp_path, monkeypatch):
    monkeypatch.setattr(package_data, "_PACKAGE", tmp_path / "hdlm")
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "hdlm" / "recipes"))):
        package_data.recipes()
