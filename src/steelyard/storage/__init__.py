"""HOW IT IS KEPT: the only place that knows SQLAlchemy and the database drivers."""
