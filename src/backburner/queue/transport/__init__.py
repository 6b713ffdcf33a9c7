"""How messages travel, as kombu transports."""
