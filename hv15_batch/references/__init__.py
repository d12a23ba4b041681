"""Published numbers compared with a log."""
