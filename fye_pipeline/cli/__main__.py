from fye_pipeline.cli.main import main

main()
