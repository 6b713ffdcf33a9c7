"""The ``.env`` that the guides print, as they print it."""

SERVER_AND_CACHE = """\
# Redis Configuration
REDIS_HOST=localhost
REDIS_PORT=6379
REDIS_DB=0
REDIS_PASSWORD=  # Optional, leave empty if no password

# Cache Configuration
CACHE_PREFIX=cache:
CACHE_DEFAULT_TTL=3600  # Default TTL in seconds (1 hour)
CACHE_SERIALIZER=json   # Options: json, pickle
"""
CELERY = """\
# Celery will use Redis settings automatically
# Or you can override:
CELERY_BROKER_URL=redis://localhost:6379/0
CELERY_RESULT_BACKEND=redis://localhost:6379/0
"""
