"""Turns of the threads of a process."""

import threading

#: Held while a slide is done, however many threads a worker has: they share its memory, its device and its settings.
one_slide_at_a_time = threading.Lock()
