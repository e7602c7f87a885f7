"""The WSGI application that gunicorn serves."""

import os

from django.core.wsgi import get_wsgi_application

from ops_app.wsgi_guard import until_migrated

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tradingsite.settings")
application = until_migrated(get_wsgi_application())
