"""Requests to servers: clients, streamed chats, proxies, Modal's proxy token, and limits of open files."""
