"""The config of a run: one tree of frozen models, one override language (`path=value`), YAML files."""
