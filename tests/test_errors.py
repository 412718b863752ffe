from vla_crl.errors import (
    USER_ERRORS,
    CheckpointError,
    ConfigError,
    ForeignError,
    SpecError,
    install_extra,
    unknown_name,
)


def test_an_unknown_name_names_the_nearest_one() -> None:
    error = unknown_name("run.toml", "task", "red_cub", ["red_cube", "blue_ball"])
    assert str(error) == (
        "run.toml: unknown task 'red_cub'. Did you mean 'red_cube'? Known: blue_ball, red_cube."
    )
    assert isinstance(error, ConfigError)


def test_extras_are_installed_in_a_clone() -> None:
    told = "pip install --editable '.[libero]' in the project's folder"
    assert install_extra("libero") == told


def test_a_name_like_no_other_gets_only_the_list() -> None:
    error = unknown_name("run.toml", "task", "xyz", ["red_cube"])
    assert str(error) == "run.toml: unknown task 'xyz'. Known: red_cube."


def test_an_empty_list_says_none() -> None:
    assert str(unknown_name("a", "task", "x", [])) == "a: unknown task 'x'. Known: none."


def test_user_errors_are_built_in_errors_too() -> None:
    ours = {ConfigError, SpecError, CheckpointError, ForeignError}
    assert set(USER_ERRORS) == {*ours, FloatingPointError}
    built_in = (ValueError, ArithmeticError, RuntimeError)
    assert all(issubclass(error, built_in) for error in USER_ERRORS)
