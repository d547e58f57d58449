"""Pipelines: several requests, each fed by those before it, declared in YAML and run as one."""
