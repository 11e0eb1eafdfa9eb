import os

from benchmarks.tuning.command import main

os.environ.setdefault("GLOG_minloglevel", "2")  # MediaPipe's C++ notes
main()
