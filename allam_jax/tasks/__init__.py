"""One file per task: `run(config, workdir) -> dict` of JSON-able results."""
