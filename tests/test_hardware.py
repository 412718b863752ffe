import platform

from vla_crl.hardware import available_memory, cpu_model, hardware_name, num_cores


def test_the_hardware_names_processor_and_cores():
    assert hardware_name().startswith(cpu_model())
    assert f"{num_cores()} core" in hardware_name()


def test_without_cpuinfo_the_platform_is_asked(monkeypatch):
    monkeypatch.setattr("pathlib.Path.is_file", lambda path: False)
    assert cpu_model() == (platform.processor() or platform.machine())


def test_the_memory_that_is_left_is_some_of_what_there_is(monkeypatch):
    left = available_memory()
    monkeypatch.setattr("pathlib.Path.is_file", lambda path: False)
    assert 2**20 < left <= available_memory()
