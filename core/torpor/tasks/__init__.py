"""What a deployment can serve: for each task its routes, its questions, its answers and how two answers compare.

routes       the names of the tasks; which route a task asks, and how its body names things
questions    the request that a text, a pair or a sound becomes
answers      what an answer says: text, vectors, a ranking, scores or labels
comparison   whether two answers are the same, within a tolerance
sound        a short sound, generated
"""
