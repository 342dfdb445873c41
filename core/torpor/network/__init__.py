"""Requests that leave this process: proxies, clients, and the limits of open connections."""
