#!/usr/bin/env python3
"""Serves a page that Django keeps in Redis, for `benches/peers/rivals` to ask for.

    pages.py PORT REDIS_URL FILE

The page is what FILE holds, at /product/42. `cache_page` keeps it by django-redis, with the
defaults of both. There is no middleware, no session and no database. gunicorn runs two processes of
four threads each, which keep connections open, so that both have the same number of cores.

Each render has a stamp of its own, in the header X-Rendered, which is kept with the page. So a page
whose stamp stays the same comes from Redis.

It ends with the process that was started, at SIGTERM.
"""

import sys
import uuid
from pathlib import Path

import environment


def main():
    environment.enter()
    port, redis, file = sys.argv[1:]
    serve(port, application(redis, Path(file).read_bytes()))


def application(redis, page):
    from django.conf import settings
    from django.core.wsgi import get_wsgi_application
    from django.http import HttpResponse
    from django.urls import path
    from django.views.decorators.cache import cache_page

    def product(_request):
        # With its length, which needs a middleware otherwise.
        headers = {"Content-Length": str(len(page)), "X-Rendered": uuid.uuid4().hex}
        return HttpResponse(page, headers=headers)

    class Addresses:
        urlpatterns = []

    settings.configure(
        ALLOWED_HOSTS=["shop.example"],
        CACHES={"default": {"BACKEND": "django_redis.cache.RedisCache", "LOCATION": redis}},
        MIDDLEWARE=[],
        ROOT_URLCONF=Addresses,
        USE_I18N=False,
    )
    Addresses.urlpatterns.append(path("product/42", cache_page(3600)(product)))
    return get_wsgi_application()


def serve(port, app):
    from gunicorn.app.base import BaseApplication

    class Server(BaseApplication):
        def load_config(self):
            settings = {
                "bind": f"127.0.0.1:{port}",
                "workers": 2,
                "worker_class": "gthread",
                "threads": 4,
                # In seconds: longer than a benchmark waits between two slices.
                "keepalive": 600,
                "loglevel": "warning",
            }
            for name, value in settings.items():
                self.cfg.set(name, value)

        def load(self):
            return app

    Server().run()


if __name__ == "__main__":
    main()
