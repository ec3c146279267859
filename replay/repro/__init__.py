"""``replay pack``: a session as one Python program that needs nothing but Python.

``script`` is that program without its data, ``expected`` what it is to find, ``packing`` puts them together.
"""
