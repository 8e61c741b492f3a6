"""The small config, for a command line."""

from tests.planning.small_runs import small_config


def get_config():
    config = small_config(data=8, fsdp=1, tensor=1)
    config.plan.compile = True
    return config
