"""`ganbert serve`: upload a T1w, watch its job, download the synthetic PET; and the page for it.

The process that listens does no arithmetic: each device has a worker process of its own, which can
be killed, by the system or by the time limit, while the service goes on.
"""
