"""The two addresses of the shop."""

from django.urls import path
from orders import views

urlpatterns = [
    path("orders/", views.place_order),
    path("jobs/<job_id>/", views.show_job, name="job"),
]
