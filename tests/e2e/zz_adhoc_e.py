import asyncio, shutil, time
from tests.e2e import test_routes_redis_kill as t
from tests.support.gateways import *
from tests.support.redis import redis_binaries
from loadtests import propagation
def test_a(tmp_path):
    with RedisServer(redis_binaries()[0], tmp_path/"redis", append_fsync="no") as srv, Gateways(tmp_path, propagation.route(), srv.url) as g:
        g.change_to(5)
        srv.kill(); shutil.copytree(tmp_path/"redis", tmp_path/"backup"); srv.start()
        g.change_to(8, first=6)
        srv.kill(); shutil.rmtree(tmp_path/"redis"); shutil.copytree(tmp_path/"backup", tmp_path/"redis"); srv.start()
        wait_until(lambda: t.conflicts(g,"older")==[1]*3, "x")
        a = ask_for(g.route_url(1), 6, "on the older one", winner="odd")
        print("PATCH If-Match g1-5 while replicas serve 8:", a.status_code, a.text[:200])
        time.sleep(1.5)
        print("conflicts", t.conflicts(g,"older"), "served", g.gauges("sluice_route_revision", route=ROUTE))
        g.restart(0)
        print("after restart of replica 0:", g.seen(0), t.conflicts(g,"older"))
        time.sleep(1.5)
        print("LKG of 0 later:", g.gauges("sluice_route_revision", route=ROUTE))
def test_b(tmp_path):
    with RedisServer(redis_binaries()[0], tmp_path/"redis", append_fsync="no") as srv, Gateways(tmp_path, propagation.route(), srv.url) as g:
        g.change_to(5)
        g.live[1].stop(); g.live[2].stop(); g.live = g.live[:1]
        srv.kill(); g.live[0].kill()
        shutil.rmtree(tmp_path/"redis"); srv.start()
        g.restart(0)
        print("only gateway restarted on an empty Redis:", g.seen(0))
def test_c(tmp_path):
    with RedisServer(redis_binaries()[0], tmp_path/"redis", append_fsync="no") as srv, Gateways(tmp_path, propagation.route(), srv.url) as g:
        op_holder = []
        async def go():
            op = t.Operator(g); over = asyncio.Event()
            async with Traffic(g.http, propagation.request()) as tr, asyncio.TaskGroup() as grp:
                grp.create_task(op.work(over))
                for _ in range(4):
                    await tr.reached(op.revision+5, 10)
                    await asyncio.to_thread(srv.kill); await asyncio.sleep(1.0)
                    await asyncio.to_thread(srv.start); up=time.monotonic()
                    rev = await op.changed()
                    ats = await tr.reached(rev, 10)
                    print("return->each replica serves the next change (s):", [round(a-up,3) for a in ats])
                over.set()
            print("requests", tr.total, "failed", len(tr.failed), "confirmed", len(op.confirmed), "refused", len(op.refused))
        asyncio.run(go())
        print("history", len(g.history()))
