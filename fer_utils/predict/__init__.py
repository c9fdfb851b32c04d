"""Predicts the expressions of faces in photographs, videos and webcams: `python -m fer_utils.predict PATH…`."""
